"""A frozen captioner that is made to speak of feelings: learn a prompt, weigh it, take it away."""

import mmprompt as mp


def main() -> None:
    captioner = mp.load_captioner("tiny")
    data = mp.load_captions("openart-scenes")
    result = mp.fit_captions("emotions", mp.SoftPrompt(n_soft=8), captioner, data)
    picture = data.test[0].image
    print("without a prompt:", mp.Captioner(captioner).caption(picture)[0].text)
    for strength in (0.5, 1.0, 2.0):
        steering = mp.captioning.Steering(((result.prompt, 1.0),), strength=strength)
        print(f"strength {strength}:", mp.Captioner(captioner, steering).caption(picture)[0].text)
    away = mp.captioning.Steering(avoid=result.prompt, avoid_strength=2.0)
    print("away from feelings:", mp.Captioner(captioner, away).caption(picture)[0].text)


if __name__ == "__main__":
    main()
