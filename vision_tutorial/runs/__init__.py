"""Run folders: what a training leaves, and how it is read back. No torch here."""
