"""What happens to sound: pure functions and model wrappers. No Ray, no storage."""
