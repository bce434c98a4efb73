// Products of tokens whose inputs are staged: brought into the form that an instruction takes, some tokens at a time,
// once for a panel of 64 rows. Sets include this behind kernels.inl, and name a form:
//
//   Input           type of a staged input
//   kTokens         tokens at a time
//   kFewest         tokens of the smallest tiles; `rest` takes what is left
//   kInputs         inputs of a token at a time: these, and a block of weights, stay in the cache next to the core
//   kParts<TOKENS>  fours of rows of a tile, 2 or 4
//   stage<TOKENS>   (tokens, token, first, count, to): `count` inputs of TOKENS tokens, from input `first` on
//   tile<TOKENS, PARTS>
//                   (inputs, weights, steps, totals): adds TOKENS x PARTS * 4 rows to the totals; those of a token are
//                   kPanel * 16 behind those of the token before
namespace {

constexpr int64_t kPanel = 4;  // blocks of 16 rows

// Tokens from `token` on, TOKENS at a time and the rest by fewer.
template <class Form, int TOKENS>
INLINE void staged_panel(const Tokens& tokens, int64_t token, const Matrix& m, int64_t begin, int64_t end,
                         const Sink& sink) {
    constexpr int PARTS = Form::template kParts<TOKENS>;
    for (; token + TOKENS <= tokens.count; token += TOKENS) {
        alignas(64) typename Form::Input inputs[TOKENS * Form::kInputs];
        alignas(64) int32_t totals[TOKENS][kPanel][16] = {};
        for (int64_t step = 0; step < m.steps; step += Form::kInputs / 4) {
            const int64_t steps = m.steps - step < Form::kInputs / 4 ? m.steps - step : Form::kInputs / 4;
            Form::template stage<TOKENS>(tokens, token, step * 4, steps * 4, inputs);
            for (int64_t block = begin; block < end; block++) {
                const int8_t* weights = m.values + (block * m.steps + step) * 64;
                for (int p = 0; p < 4; p += PARTS)
                    Form::template tile<TOKENS, PARTS>(inputs, weights + p * 16, steps,
                                                       totals[0][block - begin] + p * 4);
            }
        }
        for (int64_t block = begin; block < end; block++) {
            const Finish finish(m, block);
            for (int t = 0; t < TOKENS; t++) finish(tokens, token + t, load<I16>(totals[t][block - begin]), sink);
        }
    }
    if constexpr (TOKENS > Form::kFewest)
        staged_panel<Form, fewer(TOKENS)>(tokens, token, m, begin, end, sink);
    else
        Form::rest(tokens, token, m, begin, end, sink);
}

// Fewer tokens than the smallest tiles have, and weights in 4 bits, are multiplied as they lie.
template <class Form>
void staged_product(const Tokens& tokens, const Matrix& m, int64_t first_block, int64_t last_block, const Sink& sink) {
    if (tokens.count < Form::kFewest || m.four.codes) return product(tokens, m, first_block, last_block, sink);
    for (int64_t begin = first_block; begin < last_block; begin += kPanel) {
        const int64_t end = begin + kPanel < last_block ? begin + kPanel : last_block;
        staged_panel<Form, Form::kTokens>(tokens, 0, m, begin, end, sink);
    }
}

}  // namespace
