"""The interfaces of openai-whisper and faster-whisper on the models here, for programs that are written for them."""
