"""Intake: a checkpoint nobody vouches for becomes a teacher that is used through two calls."""

from compress.pipeline.teacher.intake import open_teacher
from compress.pipeline.teacher.model import BatchNormStatistics, Teacher

__all__ = ["BatchNormStatistics", "Teacher", "open_teacher"]
