"""What every step builds on: documents, configuration, errors, the store, registry, run record, images, models."""
