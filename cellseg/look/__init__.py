"""Pictures of annotations and results, and the report page."""
