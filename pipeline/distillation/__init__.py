"""The student learns from the teacher on images that are synthesised for it."""
