"""Scores of answers: functions, services, reward models."""
