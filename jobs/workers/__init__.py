"""Code that runs away from the driver: workers that read and decode, actors that hold a model."""
