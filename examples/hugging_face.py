"""A causal language model in transformers: trained on this file, saved, loaded by an Auto class, and writing with a constant state.

    python examples/hugging_face.py          needs transformers: pip install 'gdssm[hf]'

Prints bits per byte, whether the loaded model is the same, the numbers kept, and what it writes after prompts padded on the left.
"""

import math
import tempfile
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM
from transformers.utils.logging import disable_progress_bar

from gdssm.hf_models import GDSSMConfig, GDSSMForCausalLM

disable_progress_bar()
text = torch.tensor(list(Path(__file__).read_bytes()))
torch.manual_seed(0)
model = GDSSMForCausalLM(GDSSMConfig(vocab_size=256, d_model=32, n_layers=2, n_heads=2, pad_token_id=0))
optimiser, losses = torch.optim.AdamW(model.parameters(), lr=1e-2), []
for _ in range(31):
    batch = torch.stack([text[i : i + 65] for i in torch.randint(len(text) - 65, (8,)).tolist()])
    loss = model(batch, labels=batch).loss  # transformers shifts the labels
    losses.append(loss.item() / math.log(2))
    optimiser.zero_grad()
    loss.backward()
    optimiser.step()
print(f"bits per byte: {losses[0]:.2f} before, {losses[-1]:.2f} after 30 steps")
with tempfile.TemporaryDirectory() as folder, torch.no_grad():
    model.save_pretrained(folder)
    again = AutoModelForCausalLM.from_pretrained(folder)
    print(f"loaded, same logits: {torch.equal(again(text[None]).logits, model.eval()(text[None]).logits)}")
kept = [again(text[None, :size]).past_key_values.state.blocks[0].z.numel() for size in (10, len(text))]
print(f"numbers in a block's state: {kept[0]} after 10 bytes, {kept[1]} after all")
prompts = torch.tensor([[0, 0, *b"to"], [*b"from"]])
texts = again.generate(prompts, attention_mask=prompts.sign(), max_new_tokens=12, do_sample=False)
print(f"written: {[bytes(row[row != 0].tolist()).decode(errors='replace') for row in texts]}")
