"""The console command `disue`."""
