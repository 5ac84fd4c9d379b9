"""The ground: what every pillar stands on. Nothing here imports the rest of the package."""
