"""What each verb of the command puts together: the only readers of Settings."""
