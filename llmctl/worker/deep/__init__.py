"""What of `hosts check --deep` runs on a host: devices and collectives, stores and a trial checkpoint."""
