"""What takes part in a training: one file each."""
