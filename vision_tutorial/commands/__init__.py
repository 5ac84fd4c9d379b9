"""The commands of `vision-tutorial`, one file each: parse, call, print."""
