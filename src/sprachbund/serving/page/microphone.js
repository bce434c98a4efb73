// The microphone as frames of 100 ms.

import { address } from "./api.js";

export const SAMPLE_RATE = 16000;

const TROUBLES = {
  NotAllowedError: "The microphone is not allowed for this page. Allow it next to the address, then start again",
  NotFoundError: "No microphone was found. Plug one in, or drop a recording instead",
  NotReadableError: "The microphone is in use by another program. Close that, then start again",
  OverconstrainedError: "The microphone chosen in the settings is not there. Choose another one",
};

export class Microphone {
  /** `onFrame(samples, level)` gets Int16Array samples at `sampleRate`; `onLost()` when it is unplugged. */
  constructor(onFrame, onLost) {
    this.onFrame = onFrame;
    this.onLost = onLost;
    this.sampleRate = SAMPLE_RATE;
  }

  async open(deviceId) {
    if (!navigator.mediaDevices?.getUserMedia) {
      throw new Error("Browsers give the microphone only to pages at https:// or localhost. Open this page that way");
    }
    try {
      await this.prepare({ sampleRate: SAMPLE_RATE }).catch(() => this.prepare({}));
      this.stream = await allowed(deviceId);
      await this.connect();
    } catch (error) {
      await this.close();
      throw error;
    }
  }

  /** All that takes time comes before the microphone is on, so that no word is missed behind it. */
  async prepare(options) {
    this.context = new AudioContext(options);
    this.sampleRate = this.context.sampleRate;
    await this.context.audioWorklet.addModule(address("static/worklet.js"));
    await this.context.resume();
  }

  async connect() {
    const source = await this.source();
    this.node = new AudioWorkletNode(this.context, "frames", {
      numberOfOutputs: 0, channelCount: 1, channelCountMode: "explicit",
    });
    this.node.port.onmessage = ({ data }) => {
      if (data.samples.length) this.onFrame(data.samples, data.level);
      if (data.last) this.flushed?.();
    };
    source.connect(this.node);
    this.stream.getAudioTracks()[0].addEventListener("ended", () => this.onLost());
  }

  /** Not every browser resamples a microphone; where it does not, the service does. */
  async source() {
    try {
      return this.context.createMediaStreamSource(this.stream);
    } catch {
      await this.context.close();
      await this.prepare({});
      return this.context.createMediaStreamSource(this.stream);
    }
  }

  /** Hands over the samples of the unfinished frame and lets go of the device. */
  async close() {
    if (this.node) {
      const rest = new Promise((resolve) => { this.flushed = resolve; });
      this.node.port.postMessage("flush");
      await Promise.race([rest, new Promise((resolve) => setTimeout(resolve, 300))]);
      this.node.disconnect();
      this.node = null;
    }
    this.stream?.getTracks().forEach((track) => track.stop());
    if (this.context && this.context.state !== "closed") await this.context.close();
  }
}

async function allowed(deviceId) {
  try {
    return await navigator.mediaDevices.getUserMedia({ audio: wanted(deviceId) });
  } catch (error) {
    throw new Error(TROUBLES[error.name] ?? `The microphone cannot be opened (${error.message})`);
  }
}

/** Sound as it is: what cleans it for the ears of people takes away what a model listens for. */
function wanted(deviceId) {
  const constraints = { channelCount: 1, echoCancellation: false, noiseSuppression: false, autoGainControl: true };
  return deviceId ? { ...constraints, deviceId: { exact: deviceId } } : constraints;
}

/** Microphones with names, which browsers give only after one was allowed. */
export async function microphones() {
  const devices = await navigator.mediaDevices?.enumerateDevices?.() ?? [];
  return devices.filter((device) => device.kind === "audioinput" && device.deviceId && device.label);
}
