"""Ray itself: the session, calls, nodes, metrics, jobs."""
