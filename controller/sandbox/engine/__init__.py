"""The container engine: connection, container life cycle, output, waiting, failures, reaper."""
