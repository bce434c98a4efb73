"""Audio in: any container to 16 kHz mono, log-mel, voice activity, augmentation."""
