"""Make the checkpoint of `make demo`: `lab demo FOLDER`.

A Llama-architecture model of 48 million random parameters (97 MB in bfloat16) in Hugging Face
form, with a byte-level tokenizer. It knows nothing, but it can only say words: the LM head's rows
of all other tokens are zero, and a zero logit never wins. The same bytes come out every time.
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors

from tpi.command_line import Parser
from tpi.errors import TpiError
from tpi.files import write_atomic
from tpi.model_config import ModelConfig
from tpi.weights.dtypes import RawArray
from tpi.weights.hf_folder import write_hf_folder
from tpi.weights.synthetic import SyntheticSource

SEED = 1
BOS_ID, EOS_ID = 256, 257
_WORDS = """
a about above across after again air all along also always among an and animal another answer any
around as ask at away back be bear because bed before begin behind below beside best better
between big bird black blue boat body book both box boy bread break bridge bright bring brother
build busy but by call can carry cat catch chair change child circle city clean clear climb clock
close cloud coat cold color come common cook corn corner could count country cover cross cry cut
dance dark day deep deer device did dinner do dog door down draw dream dress drink drive dry each
early earth east easy eat edge egg eight end enough even evening ever every eye face fair fall
family far farm fast father feel few field fill find fine finger fire first fish five floor flow
flower fly follow food foot for forest found four free fresh friend from front fruit full game
garden gate gave gentle get girl give glad glass go gold good grain grass gray great green ground
group grow had half hand happy hard has hat have he head hear heart heavy help her here high hill
him his hold hole home hope horse hot hour house how hundred ice if in inside iron island it join
jump just keep key kind king kitchen know lake lamp land large last late laugh lead leaf learn
leave left letter light like line lion listen little live long look lost loud love low made make
man many map market may me meadow mean meet milk mind mine minute moon more morning most mother
mountain mouse mouth move much music must my name near need never new next night nine no north
not now number ocean of off often oil old on once one only open or orange other our out over own
page paint paper part path people picture piece place plain plant play point pond poor pretty pull
purple push put queen quick quiet rain read ready red rest rich ride right ring rise river road
rock roof room root rose round row run sail salt same sand say school sea season second see seed
send seven shade shape share sheep ship shoe shop short should side silver simple sing sister sit
six skin sky sleep slow small smile snow so soft some song soon sound south speak spring stand
star stay step still stone stop storm story street strong summer sun sure sweet swim table take
talk tall tell ten than that the their them then there these they thing think this thousand three
through time to together town travel tree true turn two under until up use valley very village
visit voice wait walk wall want warm was wash watch water wave way we week well west what wheel
when where which while white who why wide wild wind window winter wish with wood word work world
would write year yellow you young your
"""


def demo_tokenizer(words: Sequence[str]) -> tuple[Tokenizer, list[int]]:
    """A byte-level BPE in which each word, with the space before it, is one token.

    Returns:
        The tokenizer, and the ids of the words.
    """
    # The two spellings of byte-level BPE: bytes 0-255 as printable characters, a space as this.
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    space = "\u0120"
    vocab = {char: i for i, char in enumerate(alphabet)}
    vocab |= {"<s>": BOS_ID, "</s>": EOS_ID}
    merges = []
    for word in words:
        left = space
        for char in word:
            if left + char not in vocab:
                merges.append((left, char))
                vocab[left + char] = len(vocab)
            left += char
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", BOS_ID)]
    )
    tokenizer.add_special_tokens([AddedToken(t, special=True) for t in ("<s>", "</s>")])
    return tokenizer, [vocab[space + word] for word in words]


class DemoSource(SyntheticSource):
    """Random weights whose LM head chooses among `word_ids` alone."""

    def __init__(self, config: ModelConfig, word_ids: Sequence[int]) -> None:
        super().__init__(config, SEED)
        self.fingerprint = f"demo 1, {self.fingerprint}"
        self._silent = np.ones(config.vocab_size, bool)
        self._silent[list(word_ids)] = False

    def read_rows(self, name: str, start: int, stop: int) -> RawArray:
        """Rows of a tensor; see `SyntheticSource`."""
        raw = super().read_rows(name, start, stop)
        if name == "lm_head.weight":
            raw[self._silent[start:stop]] = 0
        return raw


def demo_config(vocab_size: int) -> ModelConfig:
    """The shape: 12 layers, 8 query heads on 4 KV heads, 48 million parameters."""
    return ModelConfig(
        architecture="llama", num_layers=12, hidden_size=512, num_heads=8, num_kv_heads=4,
        head_size=64, ffn_size=2048, vocab_size=vocab_size, max_positions=2048, rms_eps=1e-5,
        rope_theta=1e4, dtype="bfloat16", bos_token_id=BOS_ID, eos_token_ids=(EOS_ID,),
    )  # fmt: skip


def make_demo(folder: Path) -> int:
    """Write the checkpoint; returns the bytes written, 0 where it was there already."""
    tokenizer, word_ids = demo_tokenizer(_WORDS.split())
    config = demo_config(tokenizer.get_vocab_size())
    num_bytes = write_hf_folder(DemoSource(config, word_ids), folder)
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "model_max_length": config.max_positions,
    }
    write_atomic(folder / "tokenizer_config.json", json.dumps(settings, indent=1).encode())
    write_atomic(folder / "tokenizer.json", tokenizer.to_str(pretty=True).encode())
    return num_bytes


def main(argv: Sequence[str] | None = None) -> int:
    """Run from the command line; returns the exit status."""
    parser = Parser(prog="lab demo", description="Write the checkpoint of make demo.")
    parser.add_argument("folder", type=Path, metavar="FOLDER")
    folder = parser.parse_args(argv).folder
    try:
        num_bytes = make_demo(folder)
    except TpiError as exc:
        sys.stderr.write(f"demo: {exc}\n")
        return exc.exit_status
    word = "written to" if num_bytes else "already in"
    sys.stdout.write(f"demo checkpoint, 48 million random parameters, {word} {folder}\n")
    return 0
