"""Studies as the coordinator runs them: their stages, persisted and resumable."""
