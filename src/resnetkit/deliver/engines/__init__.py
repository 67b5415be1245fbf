"""The libraries behind `resnetkit.deliver.engine`: one module for each, imported when it is chosen."""
