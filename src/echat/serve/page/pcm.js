// Wire audio: 24 kHz 16-bit PCM in base64.

export const RATE = 24000;

/** Float samples in [-1, 1] -> base64 of 16-bit little-endian samples. */
export function encode(samples) {
  const view = new DataView(new ArrayBuffer(2 * samples.length));
  samples.forEach((sample, index) => {
    view.setInt16(2 * index, Math.max(-32768, Math.min(32767, Math.round(sample * 32768))), true);
  });
  return btoa(Array.from(new Uint8Array(view.buffer), (byte) => String.fromCharCode(byte)).join(""));
}

/** base64 of 16-bit little-endian samples -> float samples. */
export function decode(text) {
  const bytes = Uint8Array.from(atob(text), (byte) => byte.charCodeAt(0));
  const view = new DataView(bytes.buffer);
  return Float32Array.from({ length: bytes.length >> 1 }, (_, index) => view.getInt16(2 * index, true) / 32768);
}
