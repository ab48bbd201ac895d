"""Several processes, on one machine or many, that distil one student together."""
