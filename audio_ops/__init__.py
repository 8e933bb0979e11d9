"""Decoding, signal processing and models: functions of sound alone. No Ray, no storage."""
