"""Names of the files and folders of a model folder: the layout that saving, loading and conversion share."""

CONFIG_FILE = "config.yaml"  # sizes; in the model folder and in each folder of a network
WEIGHTS_FILE = "model.safetensors"  # of the speech language model, and of our own speech tokenizer
TOKENIZER_FOLDER = "tokenizer"  # of text
TOKENIZER_FILE = "tokenizer.json"
CHAT_TEMPLATE_FILE = "chat_template.yaml"  # beside it, where the template is another than ChatML

TOKEN2WAV_FOLDER = "token2wav"
FLOW_FILE = "flow.safetensors"
VOCODER_FILE = "hift.safetensors"
SPEAKER_FILE = "campplus.onnx"  # the speaker network, where there is one
VOICES_FOLDER = "voices"  # one safetensors file for each voice prompt

SPEECH_TOKENIZER_FOLDER = "speech_tokenizer"  # beside the token2wav folder
SPEECH_TOKENIZER_FILE = "speech_tokenizer_v1.onnx"  # the released one; ours has `CONFIG_FILE` and weights
