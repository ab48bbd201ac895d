"""Model in, deployable file out; nothing here knows of stages."""
