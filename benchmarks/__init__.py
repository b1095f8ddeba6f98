"""The measurements behind the documents: each command writes one result file."""
