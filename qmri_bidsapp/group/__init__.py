"""Group level: tables and a report over all participants."""
