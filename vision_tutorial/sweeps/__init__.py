"""Many trainings as processes: sweep files, trials, scheduling over devices. No torch here."""
