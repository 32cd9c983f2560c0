"""Text tokenizer: a `tokenizer.json` of the tokenizers library, and the chat template beside it."""

import shutil
from collections.abc import Sequence
from pathlib import Path

from tokenizers import Tokenizer

from echat.config import load_config, save_config
from echat.dialogue.vocabulary import CHATML, ChatTemplate, Vocabulary
from echat.model_files import CHAT_TEMPLATE_FILE, TOKENIZER_FILE

MOST_BYTES = 1 << 26  # of it; 150,000 ids take 7 MB


class TextTokenizer:
    """Encodes and decodes; stateless after loading, so threads may share it."""

    def __init__(
        self, tokenizer: Tokenizer, folder: Path | None = None, template: ChatTemplate = CHATML
    ) -> None:
        self._tokenizer = tokenizer
        self.template = template  # of the chats that the model was trained with
        self._folder = folder  # the files beside tokenizer.json travel along when saving

    @classmethod
    def from_folder(cls, folder: str | Path) -> "TextTokenizer":
        """Read `folder/tokenizer.json`, and `chat_template.yaml` where there is one."""
        path = Path(folder) / TOKENIZER_FILE
        if not path.is_file():
            raise ValueError(
                f"{path}: expected the tokenizer of the model, found nothing; copy the whole folder"
            )
        try:
            if path.stat().st_size > MOST_BYTES:
                raise ValueError(f"more than {MOST_BYTES} bytes")
            tokenizer = Tokenizer.from_file(str(path))
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # the library raises its bare base class, and panics in Rust
            raise ValueError(
                f"{path}: expected a tokenizers file, found one that cannot be read ({str(error)[:160]}); "
                "copy the tokenizer that the model was trained with"
            ) from error
        stated = Path(folder) / CHAT_TEMPLATE_FILE
        template = load_config(ChatTemplate, stated) if stated.is_file() else CHATML
        return cls(tokenizer, Path(folder), template)

    def save(self, folder: str | Path) -> None:
        """Write `tokenizer.json` (and the files that came with it) into `folder`."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        if self._folder is not None and self._folder.resolve() != folder.resolve():
            for path in self._folder.glob("*token*.json"):
                shutil.copyfile(path, folder / path.name)
        self._tokenizer.save(str(folder / TOKENIZER_FILE))
        if self.template != CHATML:
            save_config(self.template, folder / CHAT_TEMPLATE_FILE)

    def encode(self, text: str, *, add_special_tokens: bool = False) -> list[int]:
        """Ids of `text`; special tokens written in it (such as `<|im_end|>`) are recognised."""
        return self._tokenizer.encode(text, add_special_tokens=add_special_tokens).ids

    def decode(self, ids: Sequence[int]) -> str:
        """Text of `ids` without special tokens."""
        return self._tokenizer.decode(list(ids), skip_special_tokens=True)

    def vocabulary(self, codec_size: int, text_size: int) -> Vocabulary:
        """The special ids for a model of `text_size` rows of the text table."""
        return Vocabulary.from_tokenizer(self, codec_size, text_size, self.template)

    @property
    def largest_id(self) -> int:
        """The largest id that encoding may give; ids need not be contiguous."""
        return max(self._tokenizer.get_vocab(with_added_tokens=True).values(), default=-1)

    def __len__(self) -> int:
        return self._tokenizer.get_vocab_size(with_added_tokens=True)
