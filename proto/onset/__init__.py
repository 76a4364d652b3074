"""The wire schema and its generated stubs."""
