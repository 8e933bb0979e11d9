"""What runs: builds Ray Data pipelines, talks to storage."""
