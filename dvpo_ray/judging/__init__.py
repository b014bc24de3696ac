"""Answers to public benchmarks in their own formats, and a judge that compares them in pairs. Imports no Ray or vLLM."""
