"""The commands of `disue`, one file each."""
