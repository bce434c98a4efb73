"""Making models smaller: labels by a teacher, students that learn from one, weights of 8 bits."""
