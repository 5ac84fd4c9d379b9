"""Augmentation: one definition an operation, for single images and for batches."""
