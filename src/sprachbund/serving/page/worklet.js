// Turns what the microphone gives into frames of 100 ms, 16 bits, with their loudness.

class Frames extends AudioWorkletProcessor {
  constructor() {
    super();
    this.frame = new Int16Array(Math.round(sampleRate / 10));
    this.filled = 0;
    this.energy = 0;
    this.port.onmessage = () => this.post(true); // asked for the rest
  }

  process([input]) {
    const samples = input[0];
    if (!samples) return true;
    for (const sample of samples) {
      const clipped = Math.max(-1, Math.min(1, sample));
      this.energy += clipped * clipped;
      this.frame[this.filled++] = Math.round(clipped * 32767);
      if (this.filled === this.frame.length) this.post(false);
    }
    return true;
  }

  post(last) {
    const samples = this.frame.slice(0, this.filled);
    const level = this.filled ? Math.sqrt(this.energy / this.filled) : 0;
    this.port.postMessage({ samples, level, last }, [samples.buffer]);
    this.filled = 0;
    this.energy = 0;
  }
}

registerProcessor("frames", Frames);
