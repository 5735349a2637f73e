"""A frozen captioner that is made to speak of feelings: learn a prompt, weigh it, take it away."""

import mmprompt as mp


def main() -> None:
    captioner = mp.load_captioner("tiny")
    data = mp.load_captions("openart-scenes")
    prompt = mp.fit(mp.PromptTuning(n_soft=8), captioner, data.focus("emotions")).predictor.prompt
    image = data.test[0].image
    print("without a prompt:", mp.Captioner(captioner).caption(image)[0].text)
    for strength in (0.5, 1.0, 2.0):
        guidance = mp.captioning.Guidance(((prompt, 1.0),), strength=strength)
        print(f"strength {strength}:", mp.Captioner(captioner, guidance).caption(image)[0].text)
    away = mp.captioning.Guidance(avoid=prompt)
    print("without feelings:", mp.Captioner(captioner, away).caption(image)[0].text)


if __name__ == "__main__":
    main()
