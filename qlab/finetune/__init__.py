"""Fine-tuning a Hugging Face model under a byte budget: `qlab finetune` and the page `lessons/extra/10_finetune.ipynb`.

Nothing is imported here: `qlab.finetune.needs` says what is missing before any module that needs it is imported.
"""
