"""Makes a tiny Llama with random weights, its tokenizer with a chat template, and a LoRA adapter: model.py FOLDER.

Everything is made here, from a fixed seed: nothing is fetched. The answers are nonsense, but they are made and counted by
the real engine.
"""

import json
import pathlib
import random
import sys

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

CONTEXT = 1024
HIDDEN = 128
LAYERS = 2

TEMPLATE = (
    "{{ bos_token }}"
    "{% if tools %}<|im_start|>system\nTools: {{ tools | tojson }}<|im_end|>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
    "{% if m['content'] is string %}{{ m['content'] }}"
    "{% elif m['content'] %}{% for part in m['content'] %}{{ part['text'] }}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE, trained on made-up words."""
    syllables = "ba ke li mo nu ra se ti vo za ing er on al the or an st qu ph".split()
    english = "the quick brown fox jumps over a lazy dog gateway routes requests and counts tokens hello world story".split()
    words = ["".join(random.choices(syllables, k=random.randint(1, 4))) for _ in range(3000)]
    corpus = (" ".join(random.choices(words + english * 20, k=14)).capitalize() + random.choice(".?!") for _ in range(6000))
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    special = ["<|begin|>", "<|end|>", "<|im_start|>", "<|im_end|>", "<tool_call>", "</tool_call>", "<pad>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=2048, special_tokens=special, initial_alphabet=alphabet)
    bpe.train_from_iterator(corpus, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        bos_token="<|begin|>",
        eos_token="<|im_end|>",
        pad_token="<pad>",
        chat_template=TEMPLATE,
        model_max_length=CONTEXT,
        clean_up_tokenization_spaces=False,
    )


def base(folder: pathlib.Path) -> None:
    """The model itself."""
    words = tokenizer()
    ends = {"bos_token_id": words.bos_token_id, "eos_token_id": words.eos_token_id, "pad_token_id": words.pad_token_id}
    config = LlamaConfig(
        vocab_size=len(words),
        hidden_size=HIDDEN,
        intermediate_size=2 * HIDDEN,
        num_hidden_layers=LAYERS,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=64,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=False,
        **ends,
    )
    model = LlamaForCausalLM(config).to(torch.bfloat16)
    model.generation_config = GenerationConfig(**ends)
    model.save_pretrained(folder)
    words.save_pretrained(folder)


def adapter(folder: pathlib.Path, of: pathlib.Path) -> None:
    """A random LoRA adapter of rank 8."""
    folder.mkdir(parents=True)
    tensors = {}
    for layer in range(LAYERS):
        for name, width in (("q_proj", 128), ("v_proj", 64)):
            place = f"base_model.model.model.layers.{layer}.self_attn.{name}"
            tensors[f"{place}.lora_A.weight"] = torch.randn(8, HIDDEN) * 0.5
            tensors[f"{place}.lora_B.weight"] = torch.randn(width, 8) * 0.5
    save_file(tensors, folder / "adapter_model.safetensors")
    config = {
        "peft_type": "LORA",
        "base_model_name_or_path": str(of),
        "r": 8,
        "lora_alpha": 16,
        "lora_dropout": 0.0,
        "target_modules": ["q_proj", "v_proj"],
        "task_type": "CAUSAL_LM",
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "modules_to_save": None,
    }
    (folder / "adapter_config.json").write_text(json.dumps(config))


if __name__ == "__main__":
    target = pathlib.Path(sys.argv[1])
    random.seed(7)
    torch.manual_seed(3)
    base(target / "tiny-llama")
    adapter(target / "tiny-lora", target / "tiny-llama")
