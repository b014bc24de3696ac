"""Language models and value models: loading, saving, and reading them token by token."""
