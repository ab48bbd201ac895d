"""Images from class names: generator, losses, augmentation and the pool."""
