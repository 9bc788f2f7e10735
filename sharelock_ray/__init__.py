"""sharelock_ray: align any frozen vision encoder with any frozen language model."""
