"""What isolates a run. One contract, several implementations."""
