// First questions, of the kind that the shipped model has learnt. The drawings are this project's own (NOTICE).

export interface Sample {
  readonly question: string;
  /** Files in samples/, and what they show. */
  readonly pictures: readonly { readonly name: string; readonly alt: string }[];
}

const apple = { name: "apple", alt: "a red apple" };

export const withPictures: readonly Sample[] = [
  { question: "What is this?", pictures: [{ name: "cat", alt: "an orange cat's face" }] },
  { question: "How many stars are there?", pictures: [{ name: "stars", alt: "three yellow stars" }] },
  { question: "Which country's flag is this?", pictures: [{ name: "flag", alt: "a white flag with a red disc" }] },
  { question: "What kind of thing is it?", pictures: [apple] },
  { question: "What do you see?", pictures: [{ name: "fish", alt: "a blue fish" }] },
  { question: "Are these the same?", pictures: [apple, { name: "umbrella", alt: "a purple umbrella" }] },
];

export const inWords: readonly Sample[] = [
  { question: "What is the capital of France?", pictures: [] },
  { question: "Is a dog an animal?", pictures: [] },
  { question: "What is the opposite of cold?", pictures: [] },
  { question: "Who are you?", pictures: [] },
];
