"""Judge the whole schema corpus with many documents each: how many are refused, valid and invalid (must be 0).

python benchmarks/schema_corpus.py --documents 30 [--verbose]
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from rvllm_local.text.grammar.matcher import GrammarCompiler
from tests.text.schema_corpus import EOS, VOCAB_SIZE, byte_tokenizer, corpus, judge


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--documents", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--verbose", action="store_true")
    options = parser.parse_args()
    tokenizer = byte_tokenizer()
    compiler = GrammarCompiler(tokenizer, VOCAB_SIZE, EOS)
    began = time.perf_counter()
    verdicts: Counter[str] = Counter()
    documents = 0
    for schema in corpus():
        verdict, why = judge(
            schema, compiler, tokenizer, options.documents, options.seed
        )
        verdicts[verdict] += 1
        documents += int(why) if verdict == "valid" else 0
        if options.verbose or verdict in ("invalid", "unfinished"):
            print(f"{verdict:10} {json.dumps(schema)[:150]}  ->  {why[:300]}")
    total = sum(verdicts.values())
    print(
        f"{total} schemas: {dict(verdicts)}; {documents} documents, {time.perf_counter() - began:.1f} s"
    )
    sys.exit(bool(verdicts["invalid"] or verdicts["unfinished"]))


if __name__ == "__main__":
    main()
