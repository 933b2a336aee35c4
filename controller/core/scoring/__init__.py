"""What a judge and a worker say, and what it means."""
