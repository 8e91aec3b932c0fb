"""The rows of the paper's table: methods, their fits, and the report with pictures."""
