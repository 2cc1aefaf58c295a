"""The tasks that the demo model learns, a file for each kind."""
