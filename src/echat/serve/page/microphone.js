// The microphone: requests it once, then passes on pieces of 20 ms.

export class Microphone {
  /** `onPiece(samples)`: 24 kHz mono, while it is open. */
  constructor(onPiece) {
    this.onPiece = onPiece;
    this.isMuted = false;
  }

  async open() {
    if (!navigator.mediaDevices) {
      throw new Error("This browser gives the microphone only to pages from this machine or over https.");
    }
    this.stream = await navigator.mediaDevices.getUserMedia({
      audio: { channelCount: 1, echoCancellation: true, noiseSuppression: true, autoGainControl: true },
    });
    this.context = new AudioContext({ latencyHint: "interactive" });
    await this.context.audioWorklet.addModule("/page/capture-worklet.js");
    this.source = this.context.createMediaStreamSource(this.stream);
    this.capture = new AudioWorkletNode(this.context, "capture", { numberOfOutputs: 0 });
    // Muted, silence is sent, so that the session's time advances.
    this.capture.port.onmessage = ({ data }) => this.onPiece(this.isMuted ? data.fill(0) : data);
    this.source.connect(this.capture);
    await this.context.resume();
  }

  async close() {
    if (this.capture) this.capture.port.onmessage = null;
    this.stream?.getTracks().forEach((track) => track.stop());
    if (this.context && this.context.state !== "closed") await this.context.close();
  }
}
