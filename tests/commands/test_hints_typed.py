"""The command line of a remedy repeats what the user asked for."""

from __future__ import annotations

import json


def test_a_remedy_keeps_the_model_file_and_the_options(plan, tmp_path) -> None:
    config = {
        "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 8192, "num_hidden_layers": 80,
        "num_attention_heads": 64, "num_key_value_heads": 8, "intermediate_size": 28672, "vocab_size": 128256,
        "max_position_embeddings": 8192, "tie_word_embeddings": False,
    }  # fmt: skip
    path = tmp_path / "my config.json"
    path.write_text(json.dumps(config))
    code, out, _ = plan("--model", str(path), "--gpus", "4xA100-80G", "--precision", "fp16", "--reserve", "6GiB")
    assert code == 3
    commands = [line.strip() for line in out.splitlines() if line.strip().startswith("plan --model")]
    assert commands
    for command in commands:
        assert f"--model '{path}'" in command or str(path) in command
        assert "--precision fp16" in command and "--reserve 6GiB" in command
